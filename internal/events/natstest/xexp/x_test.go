package xexp
import (
 "testing"
 "time"
 "context"
 "fmt"
 "os"
 "github.com/nats-io/nats.go"
 "github.com/nats-io/nats.go/jetstream"
 "github.com/nats-io/nats-server/v2/server"
)
func TestX(t *testing.T){
 dir:=t.TempDir()
 conf:=`port: -1
jetstream { store_dir: "`+dir+`" }
authorization { users: [
 {user: admin, password: a}
 {user: pub, password: p, permissions: { publish: {allow: ["guestflow.requests.lab.*", "$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events.lab.>", "$JS.API.CONSUMER.CREATE.GUESTFLOW_EVENTS.>", "$JS.API.CONSUMER.MSG.NEXT.GUESTFLOW_EVENTS.a"]}, subscribe: {allow: ["_INBOX_p.>"]} } }
]}`
 os.WriteFile(dir+"/c.conf",[]byte(conf),0o600)
 o,err:=server.ProcessConfigFile(dir+"/c.conf"); if err!=nil{t.Fatal(err)}
 o.NoSigs=true; o.NoLog=true
 s,err:=server.NewServer(o); if err!=nil{t.Fatal(err)}
 s.Start(); defer s.Shutdown(); s.ReadyForConnections(5*time.Second)
 nc,_:=nats.Connect(s.ClientURL(), nats.UserInfo("admin","a")); js,_:=jetstream.New(nc); ctx:=context.Background()
 js.CreateStream(ctx,jetstream.StreamConfig{Name:"GUESTFLOW_EVENTS",Subjects:[]string{"guestflow.events.>","guestflow.rejections.>"},AllowDirect:true})
 js.CreateStream(ctx,jetstream.StreamConfig{Name:"GUESTFLOW_REQUESTS_lab",Subjects:[]string{"guestflow.requests.lab.*"},AllowDirect:true,Retention:jetstream.WorkQueuePolicy})
 js.Publish(ctx,"guestflow.events.lab.vm-1.run.succeeded",[]byte("EVENT OF 1"))
 js.CreateConsumer(ctx,"GUESTFLOW_EVENTS",jetstream.ConsumerConfig{Durable:"a"})
 pc,err:=nats.Connect(s.ClientURL(), nats.UserInfo("pub","p"), nats.CustomInboxPrefix("_INBOX_p"), nats.ErrorHandler(func(_ *nats.Conn,_ *nats.Subscription,e error){fmt.Println("ERR",e)})); if err!=nil{t.Fatal(err)}
 show:=func(what string){ pc.Flush(); time.Sleep(200*time.Millisecond); for _,n:=range []string{"GUESTFLOW_EVENTS","GUESTFLOW_REQUESTS_lab"}{ st,_:=js.Stream(ctx,n); i,_:=st.Info(ctx); m,_:=st.GetMsg(ctx,i.State.LastSeq); if m!=nil{fmt.Println(what,n,i.State.Msgs,m.Subject,string(m.Data),m.Header)}}}
 pc.PublishRequest("guestflow.requests.lab.vm-1","guestflow.events.lab.vm-7.run.failed",[]byte("x")); show("puback reply:")
 pc.PublishRequest("$JS.API.DIRECT.GET.GUESTFLOW_EVENTS.guestflow.events.lab.vm-1.run.succeeded","guestflow.events.lab.vm-8.run.succeeded",nil); show("direct reply:")
 pc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT.GUESTFLOW_EVENTS.a","guestflow.requests.prod.vm-8",nil)
 pc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT.GUESTFLOW_EVENTS.a","guestflow.events.lab.vm-9.run.next",[]byte("1")); show("next reply:")
 r,err:=pc.Request("$JS.API.CONSUMER.CREATE.GUESTFLOW_EVENTS.b",[]byte(`{"stream_name":"GUESTFLOW_EVENTS","config":{"name":"b","deliver_policy":"all","ack_policy":"none","deliver_subject":"guestflow.requests.lab.vm-66"}}`),2*time.Second)
 fmt.Println(err); if r!=nil{fmt.Println(string(r.Data))}; show("push deliver:")
}
